//! Metadata values: every type of GGUF, and its encoding.

/// Metadata type number of an array.
pub(super) const TYPE_ARRAY: u32 = 9;

/// A type that a metadata value or the elements of an array may have.
pub(super) trait Element: Sized {
    /// The type's number in the file.
    const ID: u32;
    /// The type's name in messages.
    const NAME: &'static str;
    /// Minimum size of a value in the file, in bytes.
    const MIN_BYTES: u64;
    /// Appends the value's encoding.
    fn put(&self, out: &mut Vec<u8>);
    /// Makes a single value.
    fn single(self) -> Value;
    /// Makes an array.
    fn array(elements: Vec<Self>) -> Value;
}

/// A Rust type that holds exactly one type of metadata value.
pub(in crate::file) trait Typed: Sized {
    /// The type's name in messages.
    const TYPE: &'static str;
    /// Returns the value, or the whole input if it has another type.
    fn of(value: Value) -> Result<Self, Value>;
}

/// Stamps what is the same for each type: the two enums, the conversions, and the names.
macro_rules! types {
    ($($(#[$doc:meta])* $variant:ident($type:ty) = $id:literal, $name:literal, $min:literal, $put:expr;)*) => {
        /// A metadata value.
        ///
        /// Built with `From`: `Value::from("llama")`, `Value::from(vec![0.5f32])`.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $($(#[$doc])* $variant($type),)*
            /// Several values of one type.
            Array(Array),
        }

        /// The values of an array, all of one type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array {
            $($(#[$doc])* $variant(Vec<$type>),)*
        }

        impl Value {
            /// Returns the type in words, e.g. `f32` or `array of string`.
            #[must_use]
            pub fn type_name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $name,)*
                    Self::Array(array) => match array {
                        $(Array::$variant(_) => concat!("array of ", $name),)*
                    },
                }
            }

            /// Appends the encodings of type and value.
            pub(super) fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => {
                        <$type as Element>::ID.put(out);
                        value.put(out);
                    })*
                    Self::Array(array) => {
                        TYPE_ARRAY.put(out);
                        match array {
                            $(Array::$variant(values) => {
                                <$type as Element>::ID.put(out);
                                (values.len() as u64).put(out);
                                values.iter().for_each(|value| value.put(out));
                            })*
                        }
                    }
                }
            }
        }

        impl Array {
            /// Returns the number of values.
            #[must_use]
            pub fn len(&self) -> usize {
                match self { $(Self::$variant(values) => values.len(),)* }
            }

            /// Whether there are no values.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }

            /// Returns the value at `index`.
            #[must_use]
            pub fn get(&self, index: usize) -> Option<Value> {
                match self {
                    $(Self::$variant(values) => values.get(index).cloned().map(Value::$variant),)*
                }
            }
        }

        $(
            impl Element for $type {
                const ID: u32 = $id;
                const NAME: &'static str = $name;
                const MIN_BYTES: u64 = $min;
                fn put(&self, out: &mut Vec<u8>) {
                    let put: fn(&Self, &mut Vec<u8>) = $put;
                    put(self, out);
                }
                fn single(self) -> Value {
                    Value::$variant(self)
                }
                fn array(elements: Vec<Self>) -> Value {
                    Value::Array(Array::$variant(elements))
                }
            }

            impl Typed for $type {
                const TYPE: &'static str = $name;
                fn of(value: Value) -> Result<Self, Value> {
                    if let Value::$variant(value) = value { Ok(value) } else { Err(value) }
                }
            }

            impl Typed for Vec<$type> {
                const TYPE: &'static str = concat!("array of ", $name);
                fn of(value: Value) -> Result<Self, Value> {
                    if let Value::Array(Array::$variant(values)) = value { Ok(values) } else { Err(value) }
                }
            }

            impl From<$type> for Value {
                fn from(value: $type) -> Self {
                    value.single()
                }
            }

            impl From<Vec<$type>> for Value {
                fn from(values: Vec<$type>) -> Self {
                    Element::array(values)
                }
            }
        )*
    };
}

types! {
    /// u8
    U8(u8) = 0, "u8", 1, |v, out| out.push(*v);
    /// i8
    I8(i8) = 1, "i8", 1, |v, out| out.extend(v.to_le_bytes());
    /// u16
    U16(u16) = 2, "u16", 2, |v, out| out.extend(v.to_le_bytes());
    /// i16
    I16(i16) = 3, "i16", 2, |v, out| out.extend(v.to_le_bytes());
    /// u32
    U32(u32) = 4, "u32", 4, |v, out| out.extend(v.to_le_bytes());
    /// i32
    I32(i32) = 5, "i32", 4, |v, out| out.extend(v.to_le_bytes());
    /// f32
    F32(f32) = 6, "f32", 4, |v, out| out.extend(v.to_le_bytes());
    /// bool
    Bool(bool) = 7, "bool", 1, |v, out| out.push(u8::from(*v));
    /// UTF-8 text
    String(String) = 8, "string", 8, |v, out| {
        (v.len() as u64).put(out);
        out.extend(v.as_bytes());
    };
    /// u64
    U64(u64) = 10, "u64", 8, |v, out| out.extend(v.to_le_bytes());
    /// i64
    I64(i64) = 11, "i64", 8, |v, out| out.extend(v.to_le_bytes());
    /// f64
    F64(f64) = 12, "f64", 8, |v, out| out.extend(v.to_le_bytes());
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl Value {
    /// Returns the value in few words, for messages. Long texts and arrays are cut.
    #[must_use]
    pub fn summary(&self) -> String {
        const SHOWN: usize = 60;
        match self {
            Self::Array(array) => format!("{} of {}", self.type_name(), array.len()),
            Self::String(text) if text.chars().count() > SHOWN => {
                format!("{:?}...", text.chars().take(SHOWN).collect::<String>())
            }
            Self::String(text) => format!("{text:?}"),
            Self::U8(v) => v.to_string(),
            Self::I8(v) => v.to_string(),
            Self::U16(v) => v.to_string(),
            Self::I16(v) => v.to_string(),
            Self::U32(v) => v.to_string(),
            Self::I32(v) => v.to_string(),
            Self::F32(v) => v.to_string(),
            Self::Bool(v) => v.to_string(),
            Self::U64(v) => v.to_string(),
            Self::I64(v) => v.to_string(),
            Self::F64(v) => v.to_string(),
        }
    }
}
