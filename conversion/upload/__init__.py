"""How a folder gets to a place that keeps files: the Hub, S3, whatever fsspec opens. Imports neither torch nor Megatron-Core.

    store.py           what a place must be able to do; what is there already and what is not
    local_files.py     the files of a folder, hashed once
    flow.py            the one way to upload: look, send what is not there, finish; after a fault look again
    hub.py, hub_errors.py      a branch of a Hub repository, one commit a push
    objects.py         places without commits: a manifest, written last, says that a folder is whole
    download.py        a folder back from such a place
    s5cmd.py, fsspec_files.py  such places: S3 by s5cmd, everything else by fsspec

`objects.upload_folder`, `objects.is_complete` and `download.download_folder` serve any folder, `conversion.push` Hugging Face
ones.
"""
