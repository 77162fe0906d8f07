"""The papers' tables and figures: their cells, how they are run, and what came out beside what was published."""
