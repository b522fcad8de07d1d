//! Scripts that Redis was told to forget, and batches of which one publication fails.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carillon_broker_client::{Broker, BrokerError, Publish, Retention};

use crate::node::{Node, channel, kept};
use crate::process::RedisProcess;
use crate::standalone;

#[tokio::test(flavor = "multi_thread")]
async fn forgotten_scripts_are_taught_again() {
    let server = RedisProcess::start(&[]);
    let node = Node::up(standalone(&server)).await;
    let name = channel("room:a");
    server.cli(&["SCRIPT", "FLUSH"]);
    node.publish(&name, "m1").await.expect("published");
    server.cli(&["SCRIPT", "FLUSH"]);
    let batch = (2..=20).map(|index| kept(&name, &format!("m{index}"))).collect();
    let receipts = node.broker.publish_batch(batch).await;
    let offsets: Vec<u64> = receipts
        .into_iter()
        .map(|receipt| receipt.expect("published").position.expect("kept").offset)
        .collect();
    assert_eq!(offsets, (2..=20).collect::<Vec<_>>());
}

/// Two nodes publish batches while the scripts are forgotten again and again: whoever meets that teaches them, in the middle
/// of the other's batch.
#[tokio::test(flavor = "multi_thread")]
async fn scripts_forgotten_in_the_middle_of_batches_cost_neither_a_message_nor_an_order() {
    const BATCHES: usize = 40;
    const EACH: usize = 500;
    let server = RedisProcess::start(&[]);
    let nodes = [Node::up(standalone(&server)).await, Node::up(standalone(&server)).await];
    let over = Arc::new(AtomicBool::new(false));
    let forgetting = {
        let (port, over) = (server.port.to_string(), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut flushes = Command::new("redis-cli");
            flushes.args(["-p", &port, "-r", "-1", "-i", "0.005", "SCRIPT", "FLUSH"]);
            let mut flushes = flushes.stdout(Stdio::null()).spawn().expect("redis-cli");
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            flushes.kill().expect("killed");
            flushes.wait().expect("ended");
        })
    };
    let publishing = nodes.iter().enumerate().map(|(number, node)| async move {
        let name = channel(&format!("room:{number}"));
        let mut acknowledged = Vec::new();
        for batch in 0..BATCHES {
            let ids: Vec<_> = (0..EACH).map(|at| format!("{:06}", batch * EACH + at)).collect();
            let kept = |id| Publish {
                retention: Some(Retention { size: 100_000, age: Duration::from_secs(3600) }),
                ..kept(&name, id)
            };
            let receipts = node.broker.publish_batch(ids.iter().map(|id| kept(id)).collect()).await;
            let good = ids.into_iter().zip(receipts).filter_map(|(id, receipt)| {
                let offset = receipt.ok()?.position.expect("kept").offset;
                Some((offset, id))
            });
            acknowledged.extend(good);
        }
        (name, acknowledged)
    });
    let all = futures_util::future::join_all(publishing).await;
    over.store(true, Ordering::Relaxed);
    forgetting.join().expect("no panic");
    for (name, acknowledged) in all {
        println!("{} of {} were acknowledged", acknowledged.len(), BATCHES * EACH);
        assert!(acknowledged.len() > BATCHES * EACH / 2, "{}", acknowledged.len());
        let reordered = acknowledged.windows(2).filter(|pair| pair[0] >= pair[1]).count();
        assert_eq!(reordered, 0, "{name}");
        let top = nodes[0].broker.tops(&[name]).await.expect("tops")[0];
        assert_eq!(top.offset, acknowledged.last().expect("one").0, "nothing else was published");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_batch_that_fails_keeps_back_nobody() {
    let server = RedisProcess::start(&[]);
    let node = Node::up(standalone(&server)).await;
    let (good, bad) = (channel("room:good"), channel("room:bad"));
    node.publish(&bad, "m0").await.expect("published");
    server.cli(&["SET", "t:{room:bad}:h", "of somebody else"]);
    let batch = (1..=40).map(|index| kept(if index % 4 == 0 { &bad } else { &good }, "m"));
    let receipts = node.broker.publish_batch(batch.collect()).await;
    let mut offset = 0;
    for (index, receipt) in (1..=40).zip(receipts) {
        if index % 4 == 0 {
            assert!(
                matches!(&receipt, Err(BrokerError::Invalid(why)) if why.contains("WRONGTYPE")),
                "{receipt:?}"
            );
        } else {
            offset += 1;
            assert_eq!(receipt.expect("published").position.expect("kept").offset, offset);
        }
    }
}
