"""Secrets, and the shapes in which they turn up in texts."""

from __future__ import annotations

import json
from collections.abc import Callable

from hypothesis import strategies as st

SECRET = st.text("abcdefABCDEF0123456789+/=_.~!$-", min_size=12, max_size=44).map(lambda text: "q9Z" + text)
SHAPES: dict[str, Callable[[str], str]] = {
    "url": lambda s: f"cannot open s3://AKIAIOSFODNN7EXAMPLE:{s}@bucket/run: denied",
    "nested url": lambda s: f"simplecache::https://me:{s}@host:8080/a?b=1 failed",
    "query": lambda s: f"GET https://host/key?X-Amz-Credential=x&X-Amz-Signature={s} gave 403",
    "sas": lambda s: f"https://account.blob.core.windows.net/c/x.mrc?sv=2024&sig={s}",
    "bearer": lambda s: f"sent header Authorization: Bearer {s}",
    "bearer alone": lambda s: f"bearer {s} was refused",
    "cookie": lambda s: f"Set-Cookie: session={s}",
    "api header": lambda s: f"{{'X-Api-Key': '{s}'}}",
    "storage options": lambda s: f"S3FileSystem(**{{'key': '{s}', 'secret': '{s}', 'token': \"{s}\"}})",
    "json": lambda s: json.dumps({"aws_secret_access_key": s, "password": s}),
    "json in json": lambda s: json.dumps({"a": json.dumps({"secret": s, "b": json.dumps({"token": s})})}),
    "csv": lambda s: f'1,"{{""password"": ""{s}"", ""key"": ""{s}""}}"',
    "assignment": lambda s: f"AWS_SECRET_ACCESS_KEY={s} RAY_AUTH_TOKEN={s}",
    "ini": lambda s: f"[default]\naws_session_token = {s}\n",
    "yaml": lambda s: f"client_secret: {s}\npasswd: {s}",
    "option": lambda s: f"ray start --token {s} --password={s}",
    "pem": lambda s: f"-----BEGIN PRIVATE KEY-----\n{s}\n{s}\n-----END PRIVATE KEY-----",
    "torn pem": lambda s: f"-----BEGIN EC PRIVATE KEY-----\n{s}",
    "azure signature alone": lambda s: f"the server got sv=2024-01-01&sig={s}&sp=r",
    "element": lambda s: f"<Credentials><SecretAccessKey>{s}</SecretAccessKey><A>x</A></Credentials>",
    "element over lines": lambda s: f"<a:SessionToken x='1'>\n  {s}\n</a:SessionToken>",
    "torn element": lambda s: f"<SecretAccessKey>{s}",
    "tuple": lambda s: f"credentials=('alice', {s!r})",
    "list": lambda s: f"secret=['a', {s!r}] and more",
    "mapping": lambda s: repr({"credentials": {"user": "alice", "value": s}}),
    "list over lines": lambda s: f"password=[\n    'a',\n    {s!r},\n]",
    "torn list": lambda s: f"token=['a', {s}",
    "list in json in json": lambda s: json.dumps({"a": json.dumps({"secret": ["a", s]})}),
    "list in csv": lambda s: f'1,"{{""secret"": [""a"", ""{s}""]}}"',
    "cookies in a list": lambda s: f"{{'Cookie': ['a', '{s}']}}",
    "call": lambda s: f"credentials=Credentials('alice', {s!r})",
    "short names": lambda s: f"DB_PW={s} GITHUB_PAT: {s}",
}  # fmt: skip
