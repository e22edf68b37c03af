"""`smallbatch bench`: how fast a column trains, against a plain script and the machine."""
