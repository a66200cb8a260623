"""An example of every request body, and of the main answers, by the name of its schema. All are made up."""

from typing import Any

from shared.auth.consent import CONSENT_VERSION
from shared.prompts import DISCLAIMER

_ASKED, _BEGUN, _ENDED = (f"2026-11-02T09:15:{second}Z" for second in ("00.120000", "00.240000", "07.500000"))
_JOB, _CONVERSATION, _QUESTION, _ANSWER, _USER, _ADMIN, _DATASET, _RUN = (
    f"01a20ced-32e0-731b-806d-a95e481a10{number}" for number in range(20, 28)
)
_SHA256 = "bf3065b0b16d79dbcdf08114c7c133fd2bfb935b1166550153a6e1ff0c26271a"
_POLICY = "3f1c9a7e5b20"
_TEXT = "Asthma narrows the airways. Common signs are wheezing, coughing and a tight chest."
_GUARD = {"action": "allow", "category": None, "severity": "none", "sentences_replaced": 0}

_JOB_VIEW = {
    "id": _JOB,
    "kind": "infer",
    "lane": "interactive",
    "state": "succeeded",
    "conversation_id": _CONVERSATION,
    "question_id": _QUESTION,
    "created_at": _ASKED,
    "started_at": _BEGUN,
    "first_sentence_at": _BEGUN,
    "finished_at": _ENDED,
    "attempt": 1,
    "max_attempts": 3,
    "cancel_requested": False,
    "error": None,
    "model_id": "demo",
    "adapter_sha256": None,
    "prompt_tokens": 180,
    "completion_tokens": 24,
    "position": None,
    "links": {"self": f"/v1/jobs/{_JOB}", "events": f"/v1/jobs/{_JOB}/events"},
}
_QUESTION_VIEW = {
    "id": _QUESTION,
    "seq": 1,
    "role": "user",
    "text": "What are the symptoms of asthma?",
    "created_at": _ASKED,
    "job_id": None,
    "parent_id": None,
    "guard": None,
    "feedback": None,
}
_ANSWER_VIEW = {
    **_QUESTION_VIEW,
    "id": _ANSWER,
    "seq": 2,
    "role": "assistant",
    "text": _TEXT,
    "created_at": _ENDED,
    "job_id": _JOB,
    "parent_id": _QUESTION,
    "guard": _GUARD,
    "feedback": "up",
}
_CONVERSATION_ITEM = {
    "id": _CONVERSATION,
    "title": "What are the symptoms of asthma?",
    "created_at": _ASKED,
    "updated_at": _ENDED,
}
_USER_VIEW = {
    "id": _USER,
    "name": "nurse.kim",
    "role": "user",
    "audience": "clinician",
    "status": "active",
    "created_at": _ASKED,
    "last_seen_at": _ENDED,
}
_OPTIONS = {"phi": "mask", "validation_fraction": 0.1, "seed": 0, "max_tokens": 2048, "model": "demo"}
_DATASET_VIEW = {
    "id": _DATASET,
    "name": "asthma answers",
    "state": "ready",
    "source": "upload",
    "source_name": "asthma.jsonl",
    "options": _OPTIONS,
    "bytes": 182_340,
    "sha256": _SHA256,
    "revision": None,
    "shape": "messages",
    "rows_train": 450,
    "rows_validation": 50,
    "manifest_sha256": _SHA256,
    "error": None,
    "created_by": _ADMIN,
    "created_at": _ASKED,
    "validated_at": _ENDED,
    "job_id": _JOB,
    "progress": None,
}
_RUN_VIEW: dict[str, Any] = {
    "id": _RUN,
    "name": "asthma",
    "state": "succeeded",
    "dataset_id": _DATASET,
    "dataset_name": "asthma answers",
    "manifest_sha256": _SHA256,
    "recipe": {"preset": "quick", "learning_rate": 0.0002},
    "base_model": "demo",
    "base_revision": None,
    "estimate": None,
    "waiting_reason": None,
    "total_steps": 120,
    "step": 120,
    "percent": 100.0,
    "eta_s": None,
    "notes": [],
    "metrics": {"eval_loss": 1.42},
    "adapter_sha256": _SHA256,
    "error": None,
    "created_by": _ADMIN,
    "created_at": _ASKED,
    "started_at": _BEGUN,
    "finished_at": _ENDED,
    "attempt": 1,
}
_ADAPTER_VIEW = {
    "sha256": _SHA256,
    "name": "asthma",
    "version": 1,
    "run_id": _RUN,
    "dataset_id": _DATASET,
    "base_model": "demo",
    "base_revision": "1",
    "status": "promoted",
    "bytes": 4_210_000,
    "created_at": _ASKED,
    "status_at": _ENDED,
    "verification": None,
    "verify_job_id": None,
    "gate": {"passed": True, "failures": []},
    "recalled_reason": None,
}
_POLICY_ITEM = {
    "version": _POLICY,
    "note": "Our clinic's questions need names.",
    "created_by": _ADMIN,
    "created_at": _ASKED,
    "active": True,
    "shadow": False,
    "packaged": False,
}
_TEXTS = {"policy.yaml": "sentence_time_budget_s: 0.25\nidentifiers: keep\n"}

EXAMPLES: dict[str, Any] = {
    # what is sent
    "AskBody": {"query": "What are the symptoms of asthma?"},
    "PredictBody": {"query": "What are the symptoms of asthma?"},
    "TitleBody": {"title": "My asthma"},
    "FeedbackBody": {"rating": "up", "comment": "Easy to understand."},
    "ImportBody": {"name": "asthma answers", "source": "path", "location": "asthma.jsonl"},
    "ValidateBody": {"options": {"phi": "quarantine"}},
    "Body_log_in_v1_auth_token_post": {
        "grant_type": "password",
        "username": "nurse.kim",
        "password": "a long passphrase",
    },
    "RefreshBody": {"refresh_token": "mcr_JkYp4tW2bqf0yXn9cR7vLhS1dGmZ3eUa"},
    "ConsentBody": {"version": CONSENT_VERSION},
    "ReauthenticateBody": {"password": "a long sentence that I know"},
    "PasswordBody": {"current": "a long passphrase", "new": "another long passphrase"},
    "NewUserBody": {"name": "nurse.kim", "role": "user", "audience": "clinician"},
    "ChangeBody": {"status": "disabled"},
    "NewKeyBody": {"name": "ward tablet", "scopes": ["ask"], "expires_at": "2027-06-30T00:00:00Z"},
    "NewRunBody": {"name": "asthma", "dataset_id": _DATASET, "preset": "quick"},
    "RollBackBody": {"base_model": "demo", "answering": _SHA256},
    "PromoteBody": {
        "override_reason": "One figure is missed by a hair, and two clinicians read the answers."
    },
    "RecallBody": {"reason": "It gives wrong doses."},
    "EvaluateBody": {"dataset_id": _DATASET},
    "CompareBody": {"question": "What is asthma?", "left": None, "right": _SHA256, "blind": True},
    "VoteBody": {"vote": "left"},
    "PolicyBody": {"texts": _TEXTS, "note": "Our clinic's questions need names."},
    "TryBody": {"text": "Take 200 mg every two hours.", "audience": "patient", "side": "answer"},
    "ReasonBody": {"reason": "The model gave a wrong dose; we are looking into it."},
    "ReplayBody": {"answers": 100},
    "ErasePersonBody": {"name": "nurse.kim"},
    "HoldBody": {"subject": f"user:{_USER}", "reference": "2026-C-0417"},
    # what comes back
    "ErasedView": {
        "conversations": 1,
        "conversations_left": 0,
        "keys": 1,
        "datasets": [_DATASET],
        "adapters": [{"sha256": _SHA256, "name": "asthma", "version": 1, "status": "active"}],
    },
    "HoldView": {
        "id": _JOB,
        "subject": f"user:{_USER}",
        "subject_name": "nurse.kim",
        "reference": "2026-C-0417",
        "placed_at": _ASKED,
        "placed_by": "admin",
        "lifted_at": None,
        "lifted_by": None,
    },
    "AnswerView": {
        "answer": _TEXT,
        "guard": _GUARD,
        "disclaimer": DISCLAIMER,
        "model": {
            "id": "demo",
            "revision": None,
            "adapter_sha256": None,
            "prompt_version": "1",
            "policy_version": _POLICY,
        },
        "timings": {"queued_ms": 120.0, "first_sentence_ms": 900.0, "total_ms": 7380.0},
        "usage": {"prompt_tokens": 180, "completion_tokens": 24},
        "job_id": _JOB,
        "conversation_id": _CONVERSATION,
        "message_id": _ANSWER,
    },
    "JobView": _JOB_VIEW,
    "MessageView": _ANSWER_VIEW,
    "ConversationItem": {**_CONVERSATION_ITEM, "message_count": 2, "active_job_id": None},
    "ConversationView": {
        **_CONVERSATION_ITEM,
        "guard_state": "none",
        "messages": [_QUESTION_VIEW, _ANSWER_VIEW],
        "job": _JOB_VIEW,
        "released": [],
    },
    "UserView": _USER_VIEW,
    "NewUserView": {**_USER_VIEW, "last_seen_at": None, "password": "0uVd3pXqYbT1kHs8ZrLw"},
    "DatasetView": _DATASET_VIEW,
    "DatasetReportView": {**_DATASET_VIEW, "report": None},
    "RunView": _RUN_VIEW,
    "AdapterView": _ADAPTER_VIEW,
    "PolicyItem": _POLICY_ITEM,
    "PolicyView": {**_POLICY_ITEM, "texts": _TEXTS},
    "Problem": {
        "type": "urn:medichat:problem:not-found",
        "title": "Not found",
        "status": 404,
        "detail": "There is no job of yours under this id.",
    },
}
