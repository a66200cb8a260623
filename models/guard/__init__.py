"""The guard's classifier: its rows, how it is trained, and the files that the guard loads."""
