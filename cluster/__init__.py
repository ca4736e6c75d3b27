"""Where the stages run and how they are reached: Ray, placement, the command line. Importing this loads none of it.

launch.py          the stages as Ray actors, placed and linked: the one place that applies `ray.remote`
ray_transport.py   the client's way to them
serve_app.py       the HTTP server as a Ray Serve application (serving/ is what it is made of)
cli_serve.py       `cascade serve`
demo.py            the target alone and the cascade answer the same question
doctor.py          what this machine can run
cli.py             the `cascade` command: parses, calls, prints; every error is one clear line
"""
