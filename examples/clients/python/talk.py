"""The conversation of examples/clients/README.md."""

import json
import os
from datetime import date
from uuid import UUID

from generated import AuthenticatedClient, Client, models as m
from generated.api.accounts import login, register
from generated.api.conflicts import list_conflicts
from generated.api.sync import changes, digests, fetch_manifest, synchronise

BASE = os.environ["ROLLCALL_URL"]
EMAIL, PASSWORD = os.environ["EMAIL"], "correct horse battery"
FIRST, SECOND = "2013-05-01 10:00:00", "2013-05-02 10:00:00"


def key(number: int) -> UUID:
    return UUID(f"01901651-0000-7000-8000-00000000000{number}")


anyone = Client(base_url=BASE)


def log_in(device: str) -> AuthenticatedClient:
    session = login.sync(client=anyone, body=m.Login(email=EMAIL, password=PASSWORD, device=device))
    assert isinstance(session, m.Session), session
    return AuthenticatedClient(base_url=BASE, token=session.token)


assert isinstance(register.sync(client=anyone, body=m.Registration(EMAIL, PASSWORD)), m.Account)
phone, tablet = log_in("phone"), log_in("tablet")
verdicts: list[str] = []


def send(device: AuthenticatedClient, batch: m.Batch, **headers) -> m.Report:
    report = synchronise.sync(client=device, body=batch, **headers)
    assert isinstance(report, m.Report), report
    for sets in (report.add, report.update, report.delete):
        for results in sets.to_dict().values():
            verdicts.extend(one["verdict"] for one in results)
    return report


def listed(device: AuthenticatedClient) -> m.Manifest:
    manifest = fetch_manifest.sync(client=device)
    assert isinstance(manifest, m.Manifest), manifest
    return manifest


# 1. The phone begins; the tablet must wait.
begun = fetch_manifest.sync_detailed(client=phone)
locked = fetch_manifest.sync(client=tablet)
assert isinstance(locked, m.Problem)

# 2. The phone sends its first rows.
send(
    phone,
    m.Batch(
        add=m.AddedRows(
            invitation_categories=[m.InvitationCategoriesNew(key(1), title="University", last_update=FIRST)],
            invitations=[
                m.InvitationsNew(key(2), guest="Jón Þór", icid=key(1), party_size=2, last_update=FIRST),
                m.InvitationsNew(key(3), guest="Clara", last_update=FIRST),
            ],
            wishlist=[m.WishlistNew(key(4), title="Pot", price="89.95", last_update=FIRST)],
            todo=[
                m.TodoNew(key(5), title="Book the band", due=date(2013, 6, 1), last_update=FIRST),
                m.TodoNew(key(6), title="Cake", done=True, last_update=FIRST),
            ],
        )
    ),
    sync_lock=int(begun.headers["Sync-Lock"]),
)

# 3. The tablet has no rows: it requests all listed rows, and sends its own edits.
there = listed(tablet)
report = send(
    tablet,
    m.Batch(
        get=m.AskedKeys(
            invitation_categories=[row.icid for row in there.invitation_categories],
            invitations=[row.iid for row in there.invitations],
            wishlist=[row.gid for row in there.wishlist],
            todo=[row.id for row in there.todo],
        ),
        add=m.AddedRows(
            gift_list=[m.GiftListNew(key(7), title="Vase", received=date(2013, 5, 2), last_update=SECOND)]
        ),
        update=m.UpdatedRows(
            invitation_categories=[
                m.InvitationCategoriesPatch(key(1), colour="#27ae60", last_update=SECOND, field_base=FIRST)
            ]
        ),
        delete=m.Deletions(todo=[m.TodoDeletion(key(6), last_update=SECOND, field_base=FIRST)]),
    ),
)

# 4. The phone has edited the same row meanwhile. It compares: it must get a gift, drop a todo and send an edit.
manifest = listed(phone)
fetched = [row.id for row in manifest.gift_list]
dropped = [mine for mine in (key(5), key(6)) if mine not in {row.id for row in manifest.todo}]
edit = m.InvitationCategoriesPatch(key(1), title="School", last_update="2013-05-01 12:00:00", field_base=FIRST)
lost = send(
    phone,
    m.Batch(get=m.AskedKeys(gift_list=fetched), update=m.UpdatedRows(invitation_categories=[edit])),
)

# 5. The edit lost. The user insists: the phone sends the row again, based on the server's row.
theirs = lost.update.invitation_categories[0].row
edit.last_update, edit.field_base = "2013-05-03 10:00:00", theirs.last_update
send(phone, m.Batch(update=m.UpdatedRows(invitation_categories=[edit])))
conflicts = list_conflicts.sync(client=phone).conflicts

# 6. The tablet sends a cursor that the server never issued, and then fetches everything.
expired = changes.sync(client=tablet, since=2**53 - 1)
assert isinstance(expired, m.Problem)
everything = changes.sync(client=tablet)
proof = digests.sync(client=tablet)

end = {
    "verdicts": verdicts,
    "received": sum(len(rows) for rows in report.get.to_dict().values()),
    "missing": [str(gone) for gone in report.missing.todo],
    "refused": [f"{locked.code} by {locked.holder}", str(expired.code)],
    "fetched": [str(one) for one in fetched],
    "dropped": [str(one) for one in dropped],
    "conflict": ", ".join(f"{one.table} {one.outcome}" for one in conflicts),
    "rows": everything.add.to_dict(),
    "counts": {table: digest["count"] for table, digest in proof.tables.to_dict().items()},
}
print(json.dumps(end))
