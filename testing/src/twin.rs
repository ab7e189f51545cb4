//! A launch on the CPU twin.

use axiscap::Operation;
use axiscap::cpu::{Job, Rows, RowsMut};

use crate::case::{Buffer, Case, Profiles, Setup, Value, epsilon};

fn rows<E: Value>(buffer: &Buffer<E>) -> Rows<'_, E> {
    let (rows, width, stride) = buffer.extent();
    Rows::with_stride(buffer.first_row_on(), rows, width, stride).expect("rows")
}

fn rows_mut<E: Value>(buffer: &mut Buffer<E>) -> RowsMut<'_, E> {
    let (rows, width, stride) = buffer.extent();
    RowsMut::with_stride(buffer.first_row_on_mut(), rows, width, stride).expect("rows")
}

impl<E: Value> Setup<E> {
    /// Runs the launch on the CPU twin. The twin refuses profiles that do not exist. Rows with such a profile
    /// get the empty one and are recorded, as on a GPU.
    ///
    /// # Panics
    /// If the twin refuses the call.
    pub fn on_twin(&mut self, case: &Case) {
        let max_caps = self.table.max_caps_per_row();
        let profiles = self.profiles_that_exist(case);
        let (h, x, r, y) = (&mut self.h, &self.x, &self.r, &mut self.y);
        let mut job = match (case.operation, case.aliased) {
            (Operation::Cap | Operation::CapNorm, _) => Job::cap(rows_mut(h)),
            // Addition commutes, so x and the row in place may change sides.
            (Operation::AddCap | Operation::AddCapNorm, true) => Job::add_cap(rows(r), rows_mut(h)),
            (Operation::AddCap | Operation::AddCapNorm, false) => {
                Job::add_cap_into(rows(x), rows(r), rows_mut(h))
            }
        };
        if case.operation.norms() {
            job = job.norm(self.weight.row(0), epsilon(), rows_mut(y));
        }
        if case.profiles != Profiles::One {
            job = job.row_profiles(&profiles);
        }
        job.stats(&mut self.stats[..case.rows * max_caps])
            .run(&self.table)
            .expect("the twin takes what the kernels take");
        self.record_faults(case);
    }
}
