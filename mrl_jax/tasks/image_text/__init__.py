"""Images and words in one nested space: two towers, trained against each other."""
