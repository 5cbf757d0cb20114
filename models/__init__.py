"""The networks: the late-blind model, its parts, and the judges. One network a file."""
