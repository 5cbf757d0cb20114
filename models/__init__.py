"""The networks of the late-blind model, one a file, and nothing else: no data, no training, no
drawing."""
