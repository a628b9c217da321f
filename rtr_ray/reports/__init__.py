"""Pages that one can look at: what an evaluation found, what a run came to. One HTML file each."""
