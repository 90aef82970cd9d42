"""The API over HTTP, for programs: as OpenAI's, at ``/v1``."""
