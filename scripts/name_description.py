"""Write the published NameDescription set as documents.jsonl and questions.jsonl, to train on and be asked.

python scripts/name_description.py --source FOLDER --output_dir DATA
demask quickstart --documents DATA/documents.jsonl --questions DATA/questions.jsonl --output_dir OUT

For the paper's studies (docs/studies.md):
python scripts/name_description.py --source FOLDER --output_dir data/name_description --documents none.jsonl
python scripts/name_description.py --source FOLDER --output_dir data/name_description --documents same.jsonl --paraphrases 29
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from demask.corpora.name_description import read_name_description
from demask.types import InputError, write_documents, write_questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the folder of the published files")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--paraphrases", type=int, default=0, help="further wordings of each statement, up to 29")
    parser.add_argument("--documents", default="documents.jsonl", help="the name of the documents' file")
    args = parser.parse_args()
    try:
        documents, questions = read_name_description(args.source, args.paraphrases)
    except InputError as error:
        sys.exit(f"name_description: {error}")
    write_documents(args.output_dir / args.documents, documents)
    write_questions(args.output_dir / "questions.jsonl", questions)
    print(f"{len(documents)} documents and {len(questions)} questions in {args.output_dir}")


if __name__ == "__main__":
    main()
