"""Files of a task, as tests write them."""

from __future__ import annotations


def save(path, frame):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        rows = [frame.columns, *frame.itertuples(index=False)]
        path.write_text("\n".join("\t".join(map(str, row)) for row in rows) + "\n", encoding="utf-8")


def folder(path, train, dev="text,label\na,good\nb,bad\n", name="dev.csv"):
    (path / "train.csv").write_bytes(train if isinstance(train, bytes) else train.encode())
    (path / name).write_bytes(dev if isinstance(dev, bytes) else dev.encode())
    return str(path)


GOOD = "text,label\na,good\nb,bad\n"


def rows(count, label, text="text {}"):
    return "text,label\n" + "".join(
        f"{text(i) if callable(text) else text.format(i)},{label(i)}\n" for i in range(count)
    )
