"""Where the stages run and how they are reached: Ray, placement, the command line. Importing this loads none of it.

launch.py          the stages as Ray actors, placed and linked: the one place that applies `ray.remote`
                   (placement.py, label_selectors.py: where;  memory_check.py: do they fit;  ray_auth.py: who may join)
supervision/       sees to it that every stage runs;  chaos/  load while stages are killed
ray_transport.py   the client's way to them;  replicated.py: to several pipelines behind one front
serve_app.py       the HTTP and gRPC servers as a Ray Serve application (serving/ is what it is made of)
edge/              the link between an edge box and the core
nodes.py           what a Ray cluster offers, measured by probes.py
traced_run.py      what every stage does when;  dashboards.py: the same for Grafana
demo.py            the target alone and the cascade answer the same question
doctor.py          what this machine can run
cli.py             the `cascade` command: parses, calls, prints; every error is one clear line
cli_<noun>.py      a subcommand each;  output_file.py  what they write
"""
