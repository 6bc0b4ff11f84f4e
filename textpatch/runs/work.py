"""What a piece of work is made of, by which a record is known again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from textpatch.plan import Plan, Row


def made_by(rows: Sequence[Row], plan: Plan) -> dict[str, str]:
    """What a record is of: the plan, and the rows' names, prompts, seeds and what else makes a row."""
    said = json.dumps([row.data for row in rows])
    return {"plan_sha256": plan.sha256, "rows_sha256": hashlib.sha256(said.encode()).hexdigest()}
