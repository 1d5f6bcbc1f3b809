"""Files of an output, damaged at random."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

VALUES = [None, -1, 0, 1, 2**31 - 1, 2**62, "", "x", "../../etc/passwd", "masks/../x", "s3://b/k", 0.5, float("nan"),
          True, [], {}, "\u202e\x9b"]  # fmt: skip


def damage_bytes(chance, path):
    data = bytearray(path.read_bytes())
    how = chance.choice(["cut", "flip", "empty", "other"])
    if how == "cut":
        data = data[: chance.randrange(max(1, len(data)))]
    elif how == "flip" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(data) if how in ("cut", "flip") else b"" if how == "empty" else b"PAR1 not ours PAR1")


def damage_table(chance, path):
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError):
        return damage_bytes(chance, path)
    name = chance.choice(table.column_names)
    at = table.schema.get_field_index(name)
    if chance.random() < 0.3:
        table = table.remove_column(at)
    else:
        value = chance.choice(VALUES)
        if chance.random() < 0.6:
            column = table[name].to_pylist()
            if column:
                column[chance.randrange(len(column))] = value
        else:
            column = [value] * table.num_rows
        try:
            kind = table.schema.field(at).type if chance.random() < 0.7 else None
            table = table.set_column(at, name, pa.array(column, kind))
        except (pa.ArrowException, TypeError, OverflowError):
            return damage_bytes(chance, path)
    data = io.BytesIO()
    try:
        pq.write_table(table, data)
    except (pa.ArrowException, OSError):
        return damage_bytes(chance, path)
    path.write_bytes(data.getvalue())


def damage_json(chance, path):
    try:
        fields = json.loads(path.read_text())
    except (ValueError, OSError):
        return damage_bytes(chance, path)
    where = fields
    for _ in range(chance.randint(0, 1)):
        inner = [value for value in where.values() if isinstance(value, dict) and value] if where else []
        where = chance.choice(inner) if inner else where
    if not isinstance(where, dict) or not where:
        return damage_bytes(chance, path)
    name = chance.choice(list(where))
    if chance.random() < 0.4:
        del where[name]
    else:
        where[name] = chance.choice(VALUES)
    path.write_text(json.dumps(fields))


def damage(chance, path):
    """One file, in a way that its kind knows."""
    if chance.random() < 0.25:
        damage_bytes(chance, path)
    elif path.suffix == ".parquet":
        damage_table(chance, path)
    else:
        damage_json(chance, path)
