"""The one reader of requests: plain lines and lines of batch files go through it alike.

``fields`` has the fields of a line, ``said`` reads what the model is told (prompts, messages, roles, parts, pictures),
``settings`` how it shall answer (options, formats) with ``tools``, ``batch`` takes the lines of batch files apart.
"""
