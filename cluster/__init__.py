"""Where the stages run and how they are reached: Ray, placement, the command line. Importing this loads none of it.

cli.py       the `cascade` command: parses, calls, prints; every error is one clear line
doctor.py    what this machine can run
demo.py      the same question answered by the target alone and by the cascade
"""
