"""What the files of a repository show, one module for each kind of thing that can be wrong."""
