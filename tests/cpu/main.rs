//! The CPU twin against the literal definition, the f64 oracle and itself, on every instruction set of this
//! machine.

/// Stamps `fn test<E: Element>(isa: Isa)` for every instruction set and element type.
macro_rules! on_every_isa {
    ($($test:ident),+ $(,)?) => {
        on_every_isa!(@ portable Portable $($test)+);
        on_every_isa!(@ avx2 Avx2 $($test)+);
        on_every_isa!(@ avx512 Avx512 $($test)+);
        on_every_isa!(@ neon Neon $($test)+);
    };
    (@ $module:ident $isa:ident $($test:ident)+) => {
        mod $module {
            $(mod $test {
                use axiscap::cpu::Isa;
                use crate::support::if_available;

                #[test]
                fn f32() {
                    if_available(Isa::$isa, super::super::$test::<f32>);
                }

                #[test]
                fn f16() {
                    if_available(Isa::$isa, super::super::$test::<half::f16>);
                }

                #[test]
                fn bf16() {
                    if_available(Isa::$isa, super::super::$test::<half::bf16>);
                }
            })+
        }
    };
}

mod arguments;
mod batch;
mod definition;
mod oracle;
mod profiles;
mod properties;
mod random;
mod support;
