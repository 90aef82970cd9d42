"""Ages out of notes, as a table: notes.csv has the columns mrn and note."""

import pandas
from pydantic import BaseModel

from obatchd.client import Client


class Patient(BaseModel):
    age: int | None


notes = pandas.read_csv("notes.csv")
job = Client().submit(notes, template="How old? {note}", id_column="mrn", schema=Patient)
job.wait().results().to_pandas().to_csv("ages.csv")
