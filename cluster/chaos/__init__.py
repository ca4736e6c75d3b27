"""`cascade bench chaos`: load on a real pipeline while its processes are killed and stopped, every answer compared.

plan.py          which fault when: drawn from a seed, before anything runs
injection.py     a fault done to a process, or to a node of a cluster on this machine
load.py          requests at a steady rate, each compared with its clean answer
vital_signs.py   memory, descriptors, stored objects
outcome.py       what came of it: a table, and one line of JSON
run.py           the order of things: clean answers, capacity, load without faults, load with faults, what is left
"""
