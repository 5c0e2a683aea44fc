"""Files: vectors and their ids, JSON, and writing results whole or not at all."""
