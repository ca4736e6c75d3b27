"""OpenAI's batches: a file of questions, answered when nobody waits, into a file of answers.

    batch.py    `Batch`: what is known of one
    rows.py     one line of its input, checked
    shelf.py    the batches of a server in a private folder, each run by one process
    run.py      one batch from its input to its output
    runs.py     those of one replica: begin, go on after a restart, stop
    routes.py   /v1/batches

(A file of questions on this machine, with a progress bar and accuracy: `cascade batch`, in cascade_runtime/batch.)
"""
