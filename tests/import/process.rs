//! The real binary: exit codes, a store that somebody holds.

use std::process::{Command, Output};

use super::support::proxy::Proxy;
use super::*;

fn herdgate(arguments: &[&std::ffi::OsStr]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_herdgate")).args(arguments).current_dir(std::env::temp_dir()).output().unwrap()
}

fn import_into(file: &Path, data: &Path) -> Output {
    herdgate(&["import".as_ref(), file.as_os_str(), "--data".as_ref(), data.as_os_str()])
}

#[test]
fn the_binary_imports_and_says_so() {
    let data = tempfile::tempdir().unwrap();
    for last in ["written to", "nothing to write"] {
        let output = import_into(&fixture("first"), data.path());
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(last), "{said}");
    }
    let output = import_into(Path::new("/nowhere/token_counts.db"), data.path());
    assert_eq!(output.status.code(), Some(1));
    let bad = herdgate(&["import".as_ref(), "--november-offset".as_ref(), "1h".as_ref(), "x.db".as_ref()]);
    assert_eq!(bad.status.code(), Some(64));
}

/// The file of a running proxy: where it listens, and its key.
fn file_of(proxy: &Proxy, key: &str) -> tempfile::NamedTempFile {
    use std::io::Write;
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let data = proxy.data.path().display();
    writeln!(file, "listen: {}\ndata: {data}\nnodes: [ 'http://127.0.0.1:1' ]\n{key}", proxy.address).unwrap();
    file
}

async fn run_with(file: &tempfile::NamedTempFile, database: PathBuf) -> (Option<i32>, String, String) {
    run(database, vec!["--config".into(), file.path().into()]).await
}

async fn run(database: PathBuf, flags: Vec<std::ffi::OsString>) -> (Option<i32>, String, String) {
    let import = move || {
        let flags = flags.iter().map(std::ffi::OsString::as_os_str);
        herdgate(&["import".as_ref(), database.as_os_str()].into_iter().chain(flags).collect::<Vec<_>>())
    };
    let output = tokio::task::spawn_blocking(import).await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_proxy_imports_into_the_ledger_that_it_holds() {
    use super::support::client::get;
    let key = "router_keys: [ { name: ops, key: secret } ]";
    let proxy = Proxy::start(&["http://127.0.0.1:1".to_owned()], key).await;
    let file = file_of(&proxy, key);
    for (name, last, total) in
        [("first", "written to", 555), ("first", "nothing to write", 555), ("later", "written to", 575)]
    {
        let (code, said, error) = run_with(&file, fixture(name)).await;
        assert_eq!(code, Some(0), "{said}{error}");
        assert!(said.contains(last), "{said}");
        let counts = get(proxy.address, "/api/token_counts?api_key=secret").await.json();
        assert_eq!(counts["total_tokens"], total);
        // The base of the live routes, too, without a restart.
        let usage = get(proxy.address, "/api/usage?api_key=secret").await.json()["token_usage_counts"].clone();
        let sum: u64 = usage
            .as_object()
            .unwrap()
            .values()
            .flat_map(|models| models.as_object().unwrap().values())
            .map(|sum| sum.as_u64().unwrap())
            .sum();
        assert_eq!(sum, total);
        // Apart by key, where an operator asks what was counted here; no request is claimed for them.
        let told = get(proxy.address, "/herdgate/usage?from=0&group=key&api_key=secret").await.json();
        let rows = told["rows"].as_array().unwrap();
        assert_eq!((rows.len(), rows[0]["key"].as_str()), (1, Some("_imported")), "{told}");
        let tokens = |kind: &str| rows[0]["tokens_exact"][kind].as_u64().unwrap();
        assert_eq!((tokens("input") + tokens("output"), rows[0]["requests"].as_u64()), (total, Some(0)), "{told}");
        // Among what completed, for the ancestor counted nothing else.
        let told = get(proxy.address, "/herdgate/usage?from=0&group=key,outcome&api_key=secret").await.json();
        let rows = told["rows"].as_array().unwrap();
        assert_eq!((rows.len(), &rows[0]["outcome"]), (1, &serde_json::json!("completed")), "{told}");
        assert_eq!(tokens("input") + tokens("output"), total);
    }
    // One that holds another directory's ledger does not take it for that one.
    let other = herdgate::usage::imported::Import { data: Some("/elsewhere".into()), ..Default::default() };
    let mine = std::fs::canonicalize(proxy.data.path()).unwrap();
    let mine = herdgate::usage::imported::Import { data: Some(mine), ..Default::default() };
    for (import, status) in [(other, 409), (mine, 200)] {
        let body = serde_json::to_string(&import).unwrap();
        let answer = super::support::client::post_once(proxy.address, "/herdgate/import?api_key=secret", &body).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    // Without its key it says so; without its file there is nobody to ask.
    let (code, _, error) = run_with(&file_of(&proxy, ""), fixture("first")).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("holds the ledger, and says 401"), "{error}");
    // No file is needed: an address and a key will do.
    let (data, listen) = (proxy.data.path().as_os_str().to_owned(), proxy.address.to_string().into());
    let flags = vec!["--data".into(), data, "--listen".into(), listen, "--key".into(), "secret".into()];
    let (code, said, error) = run(fixture("later"), flags).await;
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("nothing to write"), "{said}");
    let nobody = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    std::fs::write(nobody.path(), format!("listen: 127.0.0.1:1\ndata: {}\n", proxy.data.path().display())).unwrap();
    let (code, _, error) = run_with(&nobody, fixture("first")).await;
    assert_eq!(code, Some(75), "{error}");
    assert!(error.contains("is held by another process"), "{error}");
    // After a restart it is what it was.
    let data = proxy.stop().await;
    let counts = tokio::task::spawn_blocking(move || answers(data.path()).counts).await.unwrap();
    assert_eq!(counts.iter().map(|count| count.imported.total()).sum::<u64>(), 575);
}
