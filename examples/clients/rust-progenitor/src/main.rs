//! The conversation of examples/clients/README.md. A wrong table or column name does not compile.

use std::num::NonZeroU64;

use api::types::{
    self, AddedRows, AskedKeys, Batch, Deletions, GiftListNew, GivenTime, InvitationCategoriesNew,
    InvitationCategoriesNewTitle, InvitationCategoriesPatch, InvitationCategoriesPatchTitle, InvitationsNew,
    InvitationsNewGuest, Login, Problem, Registration, Report, RowKey, TodoDeletion, TodoNew, TodoNewTitle,
    UpdatedRows, Version, WishlistNew, WishlistNewTitle,
};
use api::{ByteStream, Client, Error};
use futures::TryStreamExt;
use serde_json::{Value, json};

mod api {
    progenitor::generate_api!(spec = "openapi.json", interface = Builder);
}

type Failure = Box<dyn std::error::Error>;

fn key(number: u8) -> RowKey {
    let text = format!("01901651-0000-7000-8000-00000000000{number}");
    RowKey(text.parse().expect("a UUID"))
}

/// Errors come as `application/problem+json`, which progenitor hands over unread.
async fn problem(error: Error<ByteStream>) -> Result<Problem, Failure> {
    let Error::ErrorResponse(response) = error else { return Err(error.to_string().into()) };
    let bytes: Vec<bytes::Bytes> = response.into_inner_stream().try_collect().await?;
    Ok(serde_json::from_slice(&bytes.concat())?)
}

fn device(url: &str, token: &str) -> Result<Client, Failure> {
    let bearer = format!("Bearer {token}").parse()?;
    let headers = reqwest::header::HeaderMap::from_iter([(reqwest::header::AUTHORIZATION, bearer)]);
    Ok(Client::new_with_client(url, reqwest::Client::builder().default_headers(headers).build()?))
}

/// A set without any is not there, as progenitor has it.
fn note(verdicts: &mut Vec<Value>, report: &Report) -> Result<(), Failure> {
    for sets in [&report.add, &report.update, &report.delete] {
        let sets = serde_json::to_value(sets)?;
        let lists = sets.as_object().into_iter().flat_map(|sets| sets.values()).filter_map(Value::as_array);
        verdicts.extend(lists.flatten().map(|result| result["verdict"].clone()));
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let url = std::env::var("ROLLCALL_URL")?;
    let (email, password) = (std::env::var("EMAIL")?, "correct horse battery".to_owned());
    let first: GivenTime = "2013-05-01 10:00:00".parse()?;
    let second: GivenTime = "2013-05-02 10:00:00".parse()?;

    let anyone = Client::new(&url);
    let registration = Registration::builder().email(email.clone()).password(password.clone());
    anyone.register().body(registration).send().await?;
    let log_in = async |name: &str| -> Result<Client, Failure> {
        let login = Login::builder().email(email.clone()).password(password.clone()).device(name);
        device(&url, &anyone.login().body(login).send().await?.token)
    };
    let (phone, tablet) = (log_in("phone").await?, log_in("tablet").await?);
    let mut verdicts = Vec::new();

    // 1. The phone begins; the tablet must wait.
    let begun = phone.fetch_manifest().send().await?;
    let fence: NonZeroU64 = begun.headers()["sync-lock"].to_str()?.parse()?;
    let locked = problem(tablet.fetch_manifest().send().await.err().ok_or("not locked")?).await?;

    // 2. The phone sends its first rows.
    let category = InvitationCategoriesNew::builder()
        .icid(key(1))
        .title(InvitationCategoriesNewTitle::try_from("University")?)
        .last_update(first.clone());
    let jon = InvitationsNew::builder()
        .iid(key(2))
        .guest(InvitationsNewGuest::try_from("Jón Þór")?)
        .icid(key(1).0)
        .party_size(2)
        .last_update(first.clone());
    let clara = InvitationsNew::builder()
        .iid(key(3))
        .guest(InvitationsNewGuest::try_from("Clara")?)
        .last_update(first.clone());
    let pot = WishlistNew::builder()
        .gid(key(4))
        .title(WishlistNewTitle::try_from("Pot")?)
        .price("89.95".to_owned())
        .last_update(first.clone());
    let band = TodoNew::builder()
        .id(key(5))
        .title(TodoNewTitle::try_from("Book the band")?)
        .due("2013-06-01".parse::<chrono::NaiveDate>()?)
        .last_update(first.clone());
    let cake = TodoNew::builder()
        .id(key(6))
        .title(TodoNewTitle::try_from("Cake")?)
        .done(true)
        .last_update(first.clone());
    let add = AddedRows {
        invitation_categories: vec![category.try_into()?],
        invitations: vec![jon.try_into()?, clara.try_into()?],
        wishlist: vec![pot.try_into()?],
        todo: vec![band.try_into()?, cake.try_into()?],
        ..Default::default()
    };
    let batch = Batch { add: Some(add), ..Default::default() };
    note(&mut verdicts, &*phone.synchronise().sync_lock(types::Fence(fence)).body(batch).send().await?)?;

    // 3. The tablet has no rows: it requests all listed rows, and sends its own edits.
    let listed = tablet.fetch_manifest().send().await?;
    let vase = GiftListNew::builder()
        .id(key(7))
        .title(types::GiftListNewTitle::try_from("Vase")?)
        .received("2013-05-02".parse::<chrono::NaiveDate>()?)
        .last_update(second.clone());
    let colour = InvitationCategoriesPatch::builder()
        .icid(key(1))
        .colour("#27ae60".to_owned())
        .last_update(second.clone())
        .base(first.clone());
    let eaten = TodoDeletion::builder().id(key(6)).last_update(second.clone()).base(first.clone());
    let batch = Batch {
        get: Some(AskedKeys {
            invitation_categories: listed.invitation_categories.iter().map(|row| row.icid.clone()).collect(),
            invitations: listed.invitations.iter().map(|row| row.iid.clone()).collect(),
            wishlist: listed.wishlist.iter().map(|row| row.gid.clone()).collect(),
            todo: listed.todo.iter().map(|row| row.id.clone()).collect(),
            ..Default::default()
        }),
        add: Some(AddedRows { gift_list: vec![vase.try_into()?], ..Default::default() }),
        update: Some(UpdatedRows { invitation_categories: vec![colour.try_into()?], ..Default::default() }),
        delete: Some(Deletions { todo: vec![eaten.try_into()?], ..Default::default() }),
        ..Default::default()
    };
    let report = tablet.synchronise().body(batch).send().await?;
    note(&mut verdicts, &report)?;
    let got = &report.get;
    let received =
        got.invitation_categories.len() + got.invitations.len() + got.wishlist.len() + got.todo.len();

    // 4. The phone has edited the same row meanwhile. It compares: it must get a gift, drop a todo and send an edit.
    let manifest = phone.fetch_manifest().send().await?;
    let fetched: Vec<_> = manifest.gift_list.iter().map(|row| row.id.clone()).collect();
    let dropped: Vec<_> = [key(5), key(6)]
        .into_iter()
        .filter(|mine| manifest.todo.iter().all(|row| row.id.0 != mine.0))
        .collect();
    let edit = |at: &str, base: &str| -> Result<Batch, Failure> {
        let patch = InvitationCategoriesPatch::builder()
            .icid(key(1))
            .title(InvitationCategoriesPatchTitle::try_from("School")?)
            .last_update(at.parse::<GivenTime>()?)
            .base(base.parse::<GivenTime>()?);
        let update = UpdatedRows { invitation_categories: vec![patch.try_into()?], ..Default::default() };
        Ok(Batch { update: Some(update), ..Default::default() })
    };
    let get = AskedKeys { gift_list: fetched.clone(), ..Default::default() };
    let batch = Batch { get: Some(get), ..edit("2013-05-01 12:00:00", &first)? };
    let lost = phone.synchronise().body(batch).send().await?;
    note(&mut verdicts, &lost)?;

    // 5. The edit lost. The user insists: the phone sends the row again, based on the server's row.
    let theirs = lost.update.invitation_categories[0].row.as_ref().ok_or("no row")?;
    let batch = edit("2013-05-03 10:00:00", &theirs.last_update)?;
    note(&mut verdicts, &*phone.synchronise().body(batch).send().await?)?;
    let conflicts = phone.list_conflicts().send().await?.into_inner().conflicts;

    // 6. The tablet sends a cursor that the server never issued, and then fetches everything.
    let since = Version(NonZeroU64::new((1 << 53) - 1).ok_or("not zero")?);
    let expired = problem(tablet.changes().since(since).send().await.err().ok_or("no problem")?).await?;
    let all = tablet.changes().send().await?;
    let proof = serde_json::to_value(&tablet.digests().send().await?.tables)?;

    let counts = proof
        .as_object()
        .into_iter()
        .flatten()
        .map(|(table, digest)| (table.clone(), digest["count"].clone()));
    let conflict: Vec<_> = conflicts.iter().map(|one| format!("{} {}", one.table, one.outcome)).collect();
    let end = json!({
        "verdicts": verdicts,
        "received": received,
        "missing": report.missing.todo,
        "refused": [
            format!("{} by {}", locked.code, locked.holder.unwrap_or_default()),
            expired.code.to_string(),
        ],
        "fetched": fetched,
        "dropped": dropped,
        "conflict": conflict.join(", "),
        "rows": all.add,
        "counts": serde_json::Map::from_iter(counts),
    });
    println!("{end}");
    Ok(())
}
