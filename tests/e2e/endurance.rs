//! Many at once, and many in a row.

use std::env;
use std::time::{Duration, Instant};

use crate::support::{Recipe, for_everyone, once};

/// Whether there is time for the long tests.
fn long() -> bool {
    env::var_os("PRELOADED_CRIU_TEST_LONG").is_some()
}

#[test]
fn twenty_at_once_ten_times_over() {
    for_everyone(|it| {
        let code = "import os, sys, numpy, numeric\na = numeric._square\nprint(sys.argv[1], bool(numpy.allclose((a @ a)[0], a[0] @ a)), os.getpid())\nraise SystemExit(int(sys.argv[1]))";
        for _ in 0..10 {
            let running: Vec<_> = (0..20)
                .map(|number| {
                    let number = number.to_string();
                    let run = it.python(["-c", code, &number]).from(Recipe::Numeric);
                    run.thawed().spawn()
                })
                .collect();
            for (number, run) in running.into_iter().enumerate() {
                let outcome = run.finish();
                assert_eq!(
                    outcome.status.code(),
                    Some(i32::try_from(number).unwrap()),
                    "{outcome:?}"
                );
                assert_eq!(
                    outcome.text(),
                    format!("{number} True {}\n", outcome.pid),
                    "{outcome:?}"
                );
            }
        }
        it.nothing_is_left();
    });
}

#[test]
fn many_in_a_row() {
    for_everyone(|it| {
        let runs = if long() { 1000 } else { 200 };
        let code = "import lively, sys; print(lively.ask(lambda: int(sys.argv[1]) + 1)[0])";
        for number in 0..runs {
            let run = it.python(["-c", code, &number.to_string()]).from(Recipe::Lively);
            let outcome = run.thawed().run();
            assert!(
                outcome.status.success() && outcome.err.is_empty(),
                "run {number}: {outcome:?}"
            );
            assert_eq!(outcome.text(), format!("{}\n", number + 1));
        }
        it.nothing_is_left();
    });
}

#[test]
fn a_run_is_not_slower_than_the_imports() {
    once(|it| {
        let run = it.code("import sklearn.linear_model").from(Recipe::Numeric);
        run.thaw().succeeds();
        let time = |what: &dyn Fn()| {
            let start = Instant::now();
            what();
            start.elapsed()
        };
        let thawed: Duration = (0..5).map(|_| time(&|| drop(run.thawed().run()))).min().unwrap();
        let stock: Duration = (0..2).map(|_| time(&|| drop(run.stock().run()))).min().unwrap();
        assert!(thawed * 4 < stock, "{thawed:?} from the image, {stock:?} without");
    });
}

/// With TensorFlow in an environment of its own, which CI does not have.
#[test]
#[ignore = "needs PRELOADED_CRIU_TEST_TENSORFLOW, an environment with TensorFlow"]
fn tensorflow() {
    once(|it| {
        let venv = env::var_os("PRELOADED_CRIU_TEST_TENSORFLOW").unwrap();
        let python = std::path::Path::new(&venv).join("bin/python");
        let image = it.work().join("tf.img");
        it.snapshot(["--recipe", "tensorflow", "--python"])
            .args([&python])
            .args(["-o"])
            .args([&image])
            .run()
            .succeeds();
        let kept = it.keep("tf.img");
        let code = "import numpy as np, tensorflow as tf\n\
            x = tf.random.stateless_uniform([512, 512], seed=(1, 2)); print(float(tf.reduce_sum(x @ x)) > 0)\n\
            m = tf.keras.Sequential([tf.keras.layers.Dense(4, input_shape=(3,)), tf.keras.layers.Dense(1)]); m.compile('sgd', 'mse')\n\
            print(len(m.fit(np.ones((64, 3)), np.ones(64), epochs=2, verbose=0).history['loss']))\n\
            print(sum(int(v) for v in tf.data.Dataset.range(100).map(lambda v: v * 2, num_parallel_calls=2)))";
        let outcome = it.code(code).image(&kept).thaw().succeeds();
        assert_eq!(outcome.text(), "True\n2\n9900\n");
        for _ in 0..10 {
            let running: Vec<_> =
                (0..20).map(|_| it.code(code).image(&kept).thawed().spawn()).collect();
            for run in running {
                assert_eq!(run.finish().succeeds().text(), "True\n2\n9900\n");
            }
        }
    });
}
