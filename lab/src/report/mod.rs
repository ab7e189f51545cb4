//! HTML pages with charts: about an axis ([`Report`]), and about an evaluation ([`evaluation_page`]).
//!
//! A page needs nothing besides itself. It is also XML after its first line. Text may come from strangers (a GGUF
//! file, a roles file): pages escape and bound it.

mod axis;
mod evaluation;
mod frame;

pub use self::axis::{BlockRow, Report, RoleRow, TraitRow};
pub use self::evaluation::evaluation_page;
