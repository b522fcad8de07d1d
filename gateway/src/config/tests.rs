//! What is refused and why, what beats what, and what is printed.

use std::time::Duration;

use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A file's text, variables and flags as sources; the file lives as long as the returned directory.
fn sources(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> (tempfile::TempDir, Sources) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("carillon.toml");
    std::fs::write(&path, file).expect("a file");
    let own = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let environment = own(environment).into_iter().collect();
    (directory, Sources { file: Some(path), environment, flags: own(flags) })
}

fn load(
    file: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Config, Mistakes> {
    let (_directory, sources) = sources(file, environment, flags);
    Config::load(sources)
}

/// A production configuration with one more line is refused for this key, with these words.
#[track_caller]
fn refused(lines: &str, key: &str, words: &str) {
    let mistakes = load(lines, &[("CARILLON__AUTH__JWT__SECRET", SECRET)], &[]).expect_err(lines);
    let found =
        mistakes.0.iter().any(|mistake| mistake.key == key && mistake.reason.contains(words));
    assert!(found, "{lines:?} gave {mistakes}");
    assert_eq!(mistakes.0.len(), 1, "{lines:?} gave {mistakes}");
}

#[test]
fn defaults_are_the_contracts() {
    let config = load("", &[("CARILLON__AUTH__JWT__SECRET", SECRET)], &[]).expect("defaults");
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:8082");
    assert_eq!(config.operator.listen.to_string(), "127.0.0.1:9082");
    assert_eq!((config.redis.mode, config.redis.prefix.as_str()), (Mode::Memory, "carillon"));
    assert_eq!(config.redis.command_timeout, Duration::from_secs(1));
    assert_eq!(config.heartbeat.timeout, Duration::from_secs(70));
    assert_eq!(
        (config.presence.timeout, config.drain.period),
        (Duration::from_secs(30), Duration::from_secs(20))
    );
    let limits = &config.limits;
    assert_eq!((limits.max_message_size, limits.queue_bytes), (1 << 20, 256 << 10));
    assert_eq!((limits.messages_per_second, limits.connections_per_user), (100, 10));
    assert_eq!((limits.subscriptions_per_connection, limits.polls_per_minute), (50, 30));
    assert!(limits.connections > 0);
    assert!(!config.console.enabled && !config.dev && !config.auth.allow_anonymous);
    assert_eq!(config.namespaces, shipped());
}

#[test]
fn flags_beat_the_environment_which_beats_the_file() {
    let file =
        "[limits]\nmessages_per_second = 1\npolls_per_minute = 1\nconnections_per_user = 1\n";
    let environment = [
        ("CARILLON__AUTH__JWT__SECRET", SECRET),
        ("CARILLON__LIMITS__MESSAGES_PER_SECOND", "2"),
        ("CARILLON__LIMITS__POLLS_PER_MINUTE", "2"),
        ("CARILLON_OTHER", "not ours"),
    ];
    let config = load(file, &environment, &[("limits.messages_per_second", "3")]).expect("config");
    let limits = &config.limits;
    assert_eq!(
        (limits.messages_per_second, limits.polls_per_minute, limits.connections_per_user),
        (3, 2, 1)
    );
}

#[test]
fn lists_and_maps_in_the_environment_are_json() {
    let config = load(
        "",
        &[
            ("CARILLON__AUTH__JWT__SECRET", SECRET),
            ("CARILLON__CORS__ORIGINS", r#"["https://a.example","http://b.example:3000"]"#),
            (
                "CARILLON__AUTH__API_KEYS",
                r#"{"shop":{"key":"0123456789abcdef","scopes":["realtime:publish","realtime:read"]}}"#,
            ),
            ("CARILLON__AUTH__API_KEYS__OPS__KEY", "fedcba9876543210"),
            ("CARILLON__AUTH__API_KEYS__OPS__SCOPES", r#"["realtime:admin"]"#),
            (
                "CARILLON__NAMESPACES",
                r#"[{"pattern":"game:{id}","subscribe":["self","granted"],"history":{"size":5,"age":"1m"}}]"#,
            ),
        ],
        &[("redis.mode", "cluster"), ("redis.urls", r#"["redis://a","redis://b"]"#)],
    )
    .expect("config");
    assert_eq!(config.cors.origins.len(), 2);
    assert_eq!(config.auth.api_keys["shop"].scopes, [Scope::Publish, Scope::Read]);
    assert_eq!(config.auth.api_keys["ops"].scopes, [Scope::Admin]);
    let [game] = config.namespaces.as_slice() else { panic!("{:?}", config.namespaces) };
    assert_eq!(
        (game.subscribe.as_slice(), game.publish.as_slice()),
        (&[Rule::Own, Rule::Granted][..], &[Rule::No][..])
    );
    assert_eq!(game.history, Some(History { size: 5, age: Duration::from_secs(60) }));
    assert_eq!(config.redis.settings().expect("redis").urls, ["redis://a", "redis://b"]);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    refused("[redis]\nprefx = \"x\"", "redis.prefx", "`redis.prefix`");
    refused("[redsi]\nurl = \"redis://a\"", "redsi.url", "`redis.url`");
    refused("listen = \"0.0.0.0:1\"", "listen", "listen`");
    refused(
        "[[namespaces]]\npattern = \"a\"\nsubscrbe = [\"no\"]",
        "namespaces[0].subscrbe",
        "subscribe`",
    );
    let mistakes = load(
        "",
        &[("CARILLON__AUTH__JWT__SECRET", SECRET), ("CARILLON__REDIS__ULR", "redis://a")],
        &[],
    )
    .expect_err("unknown variable");
    let [mistake] = mistakes.0.as_slice() else { panic!("{mistakes}") };
    assert_eq!(mistake.origin.as_deref(), Some("environment variable CARILLON__REDIS__ULR"));
    assert!(mistake.reason.contains("`redis.url`"), "{mistakes}");
}

#[test]
fn wrong_values_are_refused_with_their_key() {
    for (lines, key, words) in [
        ("[server]\nlisten = \"8082\"", "server.listen", "no address"),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/99\"]",
            "server.trusted_proxies",
            "address range",
        ),
        ("[server.tls]\ncert = \"a.pem\"", "server.tls.key", "required"),
        ("[redis]\nmode = \"big\"", "redis.mode", "no mode"),
        ("[redis]\nmode = \"memory\"\nurl = \"redis://a\"", "redis.mode", "no URL"),
        ("[redis]\nmode = \"standalone\"", "redis.url", "exactly one"),
        ("[redis]\nmode = \"cluster\"", "redis.urls", "required"),
        ("[redis]\nmode = \"sentinel\"\nurls = [\"redis://a\"]", "redis.master_name", "required"),
        ("[redis]\nurl = \"http://a\"", "redis.url", "redis://"),
        ("[redis]\ncommand_timeout = \"1\"", "redis.command_timeout", "no duration"),
        ("[heartbeat]\ninterval = \"30s\"\ntimeout = \"10s\"", "heartbeat.timeout", "longer"),
        ("[limits]\nmax_message_size = \"1 apple\"", "limits.max_message_size", "no size"),
        ("[limits]\npolls_per_minute = -1", "limits.polls_per_minute", "whole number"),
        ("[auth]\nallow_anonymous = \"maybe\"", "auth.allow_anonymous", "neither"),
        ("[auth.jwt]\nleeway = \"6s\"", "auth.jwt.leeway", "5s"),
        ("[auth.jwt]\nalgorithms = [\"none\"]", "auth.jwt.algorithms", "no algorithm"),
        ("[auth.jwt]\nalgorithms = [\"RS256\"]", "auth.jwt.algorithms", "no HS"),
        ("[[auth.jwt.keys]]\npublic_key = \"text\"", "auth.jwt.keys[0].public_key", "no PEM"),
        (
            "[[auth.jwt.keys]]\npublic_key = '{\"kty\":\"EC\",\"crv\":\"P-521\",\"x\":\"AA\",\"y\":\"AA\"}'",
            "auth.jwt.keys[0].public_key",
            "no point",
        ),
        (
            "[auth.jwt]\nalgorithms = [\"HS256\"]\n[[auth.jwt.keys]]\npublic_key = '{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}'",
            "auth.jwt.keys[0].public_key",
            "none of the allowed",
        ),
        ("[auth.jwt]\nalgorithms = [\"ES521\"]", "auth.jwt.algorithms", "ES256/384/512"),
        ("[[auth.jwt.keys]]\nkid = \"a\"", "auth.jwt.keys[0]", "either"),
        ("[[auth.jwt.keys]]\nsecret = \"short\"", "auth.jwt.keys[0].secret", "32 bytes"),
        ("[auth.api_keys.a]\nscopes = [\"realtime:read\"]", "auth.api_keys.a", "either"),
        ("[auth.api_keys.a]\nkey = \"0123456789abcdef\"", "auth.api_keys.a.scopes", "at least one"),
        (
            "[auth.api_keys.a]\nkey_hash = \"md5:1\"\nscopes = [\"realtime:read\"]",
            "auth.api_keys.a.key_hash",
            "sha256",
        ),
        ("[redis]\nurl = \"redis://x:99999\"", "redis.url", "invalid"),
        ("[redis]\nprefix = \"a{b}\"", "redis.prefix", "holds"),
        ("[auth]\ncookie = \"a b\"", "auth.cookie", "no name"),
        ("limits = \"many\"", "limits", "a table"),
        ("[cors]\norigins = [\"example.com\"]", "cors.origins", "no origin"),
        ("[auth]\ncookie = \"t\"\n[cors]\norigins = [\"*\"]", "cors.origins", "cookie"),
        ("[[namespaces]]\nsubscribe = [\"no\"]", "namespaces[0].pattern", "required"),
        ("[[namespaces]]\npattern = \"a**b\"", "namespaces[0].pattern", "last"),
        (
            "[[namespaces]]\npattern = \"a\"\nsubscribe = [\"self\"]",
            "namespaces[0].subscribe",
            "{id}",
        ),
        (
            "[[namespaces]]\npattern = \"a\"\npublish = [\"everyone\"]",
            "namespaces[0].publish",
            "no rule",
        ),
        (
            "[[namespaces]]\npattern = \"a\"\npublish = [\"webhook\"]",
            "namespaces[0].publish",
            "authorize",
        ),
        (
            "[[namespaces]]\npattern = \"a\"\n[[namespaces]]\npattern = \"a\"",
            "namespaces[1].pattern",
            "already",
        ),
        (
            "[[namespaces]]\npattern = \"a\"\nhistory = { age = \"1h\" }",
            "namespaces[0].history.size",
            "required",
        ),
        ("[[routes]]\nfrom = \"connect\"\nto = \"x\"", "routes[0].from", "control"),
        ("[inbound.webhook]\nsecret = \"x\"", "inbound.webhook.url", "required"),
        ("[inbound.webhook]\nurl = \"ftp://x\"", "inbound.webhook.url", "URL"),
        ("[inbound.webhook]\nurl = \"http://x\"", "inbound.webhook.secret", "required"),
        (
            "[events.webhook]\nurl = \"http://x\"\nsecret = \"whsec_???\"",
            "events.webhook.secret",
            "base64",
        ),
        (
            "[authorize.webhook]\nurl = \"http://x\"\nsecret = \"whsec_c2hvcnQ=\"",
            "authorize.webhook.secret",
            "16 bytes",
        ),
        (
            "[authorize.webhook]\nurl = \"http://x\"\nsecret = \"0123456789abcdef\"\ntimeout = \"0s\"",
            "authorize.webhook.timeout",
            "longer",
        ),
        ("[events]\nattempts = 0", "events.attempts", "at least 1"),
        ("[inbound]\ntypes = [\"\"]", "inbound.types", "empty"),
        ("[log]\nlevel = \"a=b=c\"", "log.level", "no level"),
        ("[log]\nformat = \"xml\"", "log.format", "no format"),
        (
            "[auth]\nallow_anonymous = true\n[[namespaces]]\npattern = \"a\"\npublish = [\"anyone\"]",
            "namespaces[0].publish",
            "strangers",
        ),
    ] {
        refused(lines, key, words);
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let file = "[redis]\nmode = \"x\"\nprefx = \"y\"\n[log]\nformat = \"z\"\n[heartbeat]\ninterval = \"soon\"\n";
    let mistakes =
        load(file, &[("CARILLON__AUTH__JWT__SECRET", "short")], &[]).expect_err("mistakes");
    let keys: Vec<&str> = mistakes.0.iter().map(|mistake| mistake.key.as_str()).collect();
    for key in ["redis.mode", "redis.prefx", "log.format", "heartbeat.interval", "auth.jwt.secret"]
    {
        assert!(keys.contains(&key), "{key} is missing in {mistakes}");
    }
    assert!(mistakes.to_string().starts_with("5 mistakes in the configuration:"));
}

#[test]
fn production_needs_a_key_of_length() {
    let words = |file: &str| load(file, &[], &[]).expect_err(file).to_string();
    assert!(words("").contains("auth.jwt: needs"));
    assert!(words("[auth.jwt]\nsecret = \"changeme\"").contains("shorter than 32 bytes"));
    assert!(load("dev = true\n[auth.jwt]\nsecret = \"changeme\"", &[], &[]).is_ok());
    let example = "[auth.jwt]\nsecret = \"change-me_change-me_change-me_change-me\"";
    assert!(words(example).contains("auth.jwt.secret: is the placeholder"));
    assert!(load(&format!("dev = true\n{example}"), &[], &[]).is_ok());
    assert!(words("this is not toml").contains("is not TOML"));
}

#[test]
fn a_named_file_that_cannot_be_read_is_a_mistake() {
    let sources = Sources { file: Some("does/not/exist.toml".into()), ..Sources::default() };
    assert!(Config::load(sources).expect_err("missing").to_string().contains("cannot be read"));
}

#[test]
fn secrets_come_from_files_and_variables_and_never_print() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("secret");
    std::fs::write(&path, format!("{SECRET}\n")).expect("a file");
    let config = load(
        "[redis]\nurl = \"redis://user:hunter2@localhost:6379\"\n[auth.api_keys.a]\nscopes = [\"realtime:read\"]\nkey = \"env:KEY_A\"",
        &[("CARILLON__AUTH__JWT__SECRET", &format!("file:{}", path.display())), ("KEY_A", "fedcba9876543210")],
        &[],
    )
    .expect("config");
    assert_eq!(config.auth.jwt.secret.as_ref().map(Secret::expose), Some(SECRET));
    assert_eq!(
        config.auth.api_keys["a"].key.as_ref().map(Secret::expose),
        Some("fedcba9876543210")
    );
    assert_eq!(config.redis.mode, Mode::Standalone);
    let printed = format!("{}{config:?}", config.to_toml().expect("TOML"));
    for secret in [SECRET, "fedcba9876543210", "hunter2"] {
        assert!(!printed.contains(secret), "{secret} was printed");
    }
    assert!(printed.contains("redis://***@localhost:6379"));
    let hook = "https://user:hunter3@a.example/h?to=b@c";
    let config = Config::development(&[("inbound.webhook.url", hook)]).expect("config");
    assert!(config.to_toml().expect("TOML").contains("https://***@a.example/h?to=b@c"));
    let mistakes = load("[auth.jwt]\nsecret = \"env:NOT_THERE\"", &[], &[]).expect_err("missing");
    assert!(mistakes.to_string().contains("the environment has no NOT_THERE"));
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = Config::development(&[
        ("cors.origins", "https://a.example"),
        ("inbound.webhook.url", "http://localhost:1/hook"),
        ("routes", r#"[{"from":"a","to":"b","payload":{"x":"$user_id"}}]"#),
    ])
    .expect("config");
    let printed = config.to_toml().expect("TOML");
    let (_directory, sources) = sources(&printed, &[], &[]);
    let again = Config::load(sources).unwrap_or_else(|mistakes| panic!("{mistakes}\n{printed}"));
    assert_eq!(again.to_toml().expect("TOML"), printed);
}

#[test]
fn development_makes_secrets_that_a_reload_keeps() {
    let config = Config::development(&[]).expect("config");
    let secret = config.auth.jwt.secret.clone().expect("made");
    assert!(secret.expose().len() >= SECRET_BYTES_MIN);
    assert_eq!(config.auth.api_keys[DEVELOPMENT_KEY].scopes, [Scope::Admin]);
    assert!(config.console.enabled);
    let reloaded = config.reload().expect("reload");
    assert_eq!(reloaded.config.auth, config.auth);
    let other = Config::development(&[]).expect("config");
    assert_ne!(other.auth.jwt.secret, config.auth.jwt.secret);
}

#[test]
fn a_reload_changes_keys_limits_namespaces_and_level_alone() {
    let first = format!("[auth.jwt]\nsecret = \"{SECRET}\"\n");
    let (_directory, sources) = sources(&first, &[], &[]);
    let path = sources.file.clone().expect("a file");
    let config = Config::load(sources).expect("config");
    let second = "[auth.jwt]\nsecret = \"another-secret-another-secret-another\"\n[limits]\nqueue_bytes = \"1MiB\"\n\
        [log]\nlevel = \"debug\"\n[[routes]]\nfrom = \"a\"\nto = \"b\"\n[redis]\nprefix = \"other\"\n[[namespaces]]\npattern = \"only\"\n";
    std::fs::write(&path, second).expect("a file");
    let Reloaded { config: fresh, needs_restart } = config.reload().expect("reload");
    assert_eq!(needs_restart, ["redis"]);
    assert_eq!((fresh.limits.queue_bytes, fresh.log.level.as_str()), (1 << 20, "debug"));
    assert_eq!(fresh.routes.len(), 1);
    assert_eq!((fresh.namespaces.len(), fresh.redis.prefix.as_str()), (1, "carillon"));
    assert_ne!(fresh.auth.jwt.secret, config.auth.jwt.secret);
    std::fs::write(&path, "[limits]\nqueue_bytes = \"lots\"\n").expect("a file");
    assert!(fresh.reload().is_err());
}
