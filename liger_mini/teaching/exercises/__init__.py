"""The course's graded tasks: a file for each chapter, and what checks them."""
