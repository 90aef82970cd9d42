"""Archives, packed files, workbooks and Parquet: unpacked in a child, before anything in them is read for requests."""
