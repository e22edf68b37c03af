"""What `smallbatch bench` cannot do."""
