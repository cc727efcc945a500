"""The method: a student follows the gap between its own score and the instructor's."""
