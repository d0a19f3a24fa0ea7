"""Are the nodes of a job fit for it? Looked at before the ranks start, so that an allocation does not burn on a bad one.

    node      on every node, one task each: checks -> OUT/NODE.json
    network   on every rank, where all nodes passed: bus bandwidth of all-reduces, NCCL's transport -> OUT/network.json
    verdict   once, after each of the two: compares the nodes, prints the table (stderr) and one line (stdout):
              "ok", "bad n2,n5" (to be left out), or "stop" (what is wrong no other node would mend)

slurm/preflight.sh runs them in this order. What counts as bad stands in a file of configs/preflight (limits.py).

    findings.py      what a check says; what checks know of their node; how tools are run
    node.py          the list of checks, run one by one
    gpus.py          what the driver and the kernel log say of the GPUs      speed.py     a GEMM and a copy on each GPU
    tools.py         dcgmi, gpu-fryer, fio, where they are installed         storage.py   speed and space of folders
    inputs.py        data and layout against the configuration               access.py    S3 and the Hub
    network.py       the ranks' all-reduces                                  transport.py reads NCCL's log
    verdict.py       compares the nodes                                      report.py    the table, with SmolLM3's figures
"""
