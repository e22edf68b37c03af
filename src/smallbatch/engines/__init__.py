"""The two engines, which compute runs: `loop` and `lanes`."""
