"""Gives schemathesis the tokens of rollcall."""

import os
import uuid

import requests
import schemathesis

URL = os.environ["ROLLCALL_URL"]
PASSWORD = "correct horse battery"


def request(method, path, token=None, **more):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return requests.request(method, f"{URL}{path}", headers=headers, timeout=60, **more)


@schemathesis.auth(refresh_interval=None)
class Session:
    """One device. It logs in again if a case has revoked its token, and as another user if a case has erased the user or
    replaced the password. Requests to the console have the operator's token."""

    email = "anna@example.com"
    token = None

    def get(self, case, context):
        if context.operation.path.startswith("/console/"):
            return os.environ["ROLLCALL_TOKEN_OF_CONSOLE"]
        if Session.token is None or request("GET", "/me", Session.token).status_code in (401, 410):
            Session.token = self.log_in() or self.log_in(another=True)
        return Session.token

    def log_in(self, another=False):
        if another:
            Session.email = f"{uuid.uuid4()}@example.com"
        credentials = {"email": Session.email, "password": PASSWORD}
        request("POST", "/register", json=credentials)
        response = request("POST", "/login", json={**credentials, "device": "st"})
        if not another and response.status_code == 401:
            return None
        response.raise_for_status()
        return response.json()["token"]

    def set(self, case, data, context):
        case.headers = case.headers or {}
        case.headers["Authorization"] = f"Bearer {data}"
