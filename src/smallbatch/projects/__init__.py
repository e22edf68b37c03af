"""New projects: the files in them, and params for a folder of images."""
