"""The one client of Ollama, and the one table of its errors.

* ``connections`` speaks HTTP to one server: address, token, connections that are kept, the limit on connecting.
* ``reading`` reads an answer as a whole or line by line, and makes a fault of an error answer.
* ``faults`` is the table: by Ollama's words and statuses whose fault it is, the code, and the advice to the user.
* ``foreign`` words what a proxy in front of a server, or something else at its address, answered.
* ``client`` asks for prompts of jobs (``/api/chat``, ``/api/embed``): it runs in workers and answers with faults.
* ``api`` makes all other calls, for supervision and burn-ins: it raises ServerError or ModelError.

How to add an error of Ollama: docs/howto/add-a-fault.md. Nothing else depends on Ollama's words.
"""
