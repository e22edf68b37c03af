"""A column carried out: chunks, worker processes, reasons to stop."""
