//! A program of another workspace that caps rows in memory, and on a GPU with the feature `cuda`.

use std::error::Error;

use axiscap::cpu::{Job, RowsMut};
use axiscap::{Axis, Bound, Cap, CapTable};

fn main() -> Result<(), Box<dyn Error>> {
    let axis = Axis::from_direction(&[0.6, 0.8])?;
    let table = CapTable::new(&[Cap::new(axis, Bound::ceiling(1.0)?)])?;
    let mut rows = [3.0, 4.0, 0.1, 0.2];
    Job::cap(RowsMut::from_slice(&mut rows, 2)?).run(&table)?;
    println!("{rows:?}");
    #[cfg(feature = "cuda")]
    match axiscap::cuda::probe() {
        Ok(gpus) => println!("{} GPUs", gpus.len()),
        Err(error) => println!("no GPU: {error}"),
    }
    Ok(())
}
