"""nbgrader's settings for this course; written by `python -m liger_mini assignments`."""

c = get_config()
c.CourseDirectory.course_id = "liger_mini"
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your code here"}
c.ExecutePreprocessor.timeout = 30  # seconds a cell may take
c.ExecutePreprocessor.interrupt_on_timeout = True
