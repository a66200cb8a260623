"""The review of answers by auditors: which are reviewed, by whom, and what comes of it."""
