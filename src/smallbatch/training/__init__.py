"""How runs are computed: the protocol, the loop engine, and columns of runs on all cores."""
