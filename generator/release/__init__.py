"""Releases: immutable copies of a proved repository on object storage or in a folder, and channels that name one.

A store holds, below its prefix:

    releases/ID/...                     the model repository, file by file; never changed once it is there
    releases/ID/trtgen-release.json     the manifest: every file with its size and SHA-256; written last
    channels/NAME.json                  which release is served, and those before it; changed by compare-and-swap

So what is half uploaded is no release, and a server never reads what is being written.
"""
