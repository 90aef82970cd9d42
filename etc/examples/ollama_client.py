"""Ask every GPU at once with Ollama's own client: OLLAMA_HOST=http://127.0.0.1:8434, OLLAMA_API_KEY=obk_…"""

from concurrent.futures import ThreadPoolExecutor

from ollama import Client

notes = ["A man of 61 with a cough.", "A girl of 9, well.", "A woman of 44 with a fever."]
with Client() as client, ThreadPoolExecutor(32) as pool:
    model = str(client.list().models[0].model)
    answers = pool.map(lambda note: client.generate(model, f"Sum up: {note}").response, notes)
    for note, answer in zip(notes, answers, strict=True):
        print(f"{note} -> {answer!r}")
