use emlx_cpu::internals::pool::parallel;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_part_is_done_once_whoever_calls() {
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for count in [0, 1, 2, 3, 100] {
                    let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                    parallel(count, true, &|i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            });
        }
    });
}

#[test]
fn a_panic_reaches_the_caller_and_the_threads_go_on() {
    let result = catch_unwind(|| parallel(64, true, &|i| assert!(i != 40, "part 40")));
    assert!(result.is_err());
    let sum = AtomicUsize::new(0);
    parallel(64, true, &|i| {
        sum.fetch_add(i, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 64 * 63 / 2);
}
