"""Datasets on the nodes' own disks before the ranks start: one srun task a node, which all end together (docs/staging.md).

    srun --ntasks-per-node=1 python -m slurm.staging --config C.yaml --run RUN --out DIR

    needs.py     configuration and newest checkpoint -> which datasets are copied, which are only linked
    disk.py      what of them is on this node's disk, and whether the rest has room
    sources.py   where the rest comes from: the shared folder or S3
    peers.py     or from another node of the step: each serves what it has while the step lasts
    fetch.py     file after file, several at a time, each compared with its manifest before it gets its name
    load.py      the order of these things on one node
    __main__.py  the command and its exit code: 0 loaded; 85 start me again; 93 mend something first

What a node's folder holds (SMOL_LOCAL_DATA; names are those below DATA_ROOT):

    NAME/manifest.json       the dataset is whole; written last
    NAME/staged.json         its files were verified here, byte for byte; whether this program made the folder
    NAME/.partial/FILE       on its way; a call after a kill goes on where it stopped
    NAME -> SOURCE/NAME      a link: not needed soon, so it stays where it is
"""
