//! The table of operations as data: their names, and their attributes with names and types, read from the derived
//! `Deserialize` of [`Op`]. So the list cannot differ from the enum.

use super::{Class, Op, View};
use once_cell::sync::OnceCell;
use rustler::{Atom, Encoder, Env, NifMap, NifResult, Term};
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess};
use serde::de::{Deserializer, Error as _, VariantAccess, Visitor};
use serde::Deserialize;
use std::collections::HashMap;
use strum::VariantNames;

/// What an attribute can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    S32,
    S64,
    U64,
    F32,
    F64,
    Bool,
    String,
    /// An integer, a float, a complex number or one that is not finite.
    Number,
    List(Box<Kind>),
    /// Or nil.
    Optional(Box<Kind>),
    /// One of these names.
    OneOf(&'static [&'static str]),
}

pub struct Entry {
    pub attributes: Vec<(&'static str, Kind)>,
    /// One with some attributes, which need not fit each other or any array.
    pub example: Op,
}

/// Every operation, in the order of the enum.
pub fn entries() -> Result<Vec<Entry>, Error> {
    Op::VARIANTS
        .iter()
        .map(|name| {
            let mut attributes = Vec::new();
            let example = Op::deserialize(Operation {
                name,
                attributes: &mut attributes,
            })?;
            Ok(Entry {
                attributes,
                example,
            })
        })
        .collect()
}

/// The names of an operation's attributes that may be nil.
pub fn optional(operation: &str) -> Option<&'static [&'static str]> {
    static ALL: OnceCell<HashMap<&'static str, Vec<&'static str>>> = OnceCell::new();
    let all = ALL.get_or_init(|| {
        let of = |(name, entry): (&&'static str, Entry)| {
            let attributes = entry.attributes.into_iter();
            let optional = attributes.filter(|(_, kind)| matches!(kind, Kind::Optional(_)));
            (*name, optional.map(|(name, _)| name).collect())
        };
        let entries = entries().unwrap_or_default();
        Op::VARIANTS.iter().zip(entries).map(of).collect()
    });
    all.get(operation).map(Vec::as_slice)
}

/// What Elixir is told of an operation.
#[derive(NifMap)]
struct Row<'a> {
    name: Atom,
    attributes: Vec<(Atom, Term<'a>)>,
    class: Class,
    required: u8,
    optional: u8,
    more: bool,
    outputs: Option<u8>,
    view: Option<View>,
    elementwise: bool,
    converts: bool,
    simple: bool,
    cpu_only: bool,
    late_failure: bool,
}

mod atoms {
    rustler::atoms! { s32, s64, u64, f32, f64, bool, string, number, list, optional, one_of }
}

impl Kind {
    fn term<'a>(&self, env: Env<'a>) -> NifResult<Term<'a>> {
        Ok(match self {
            Kind::S32 => atoms::s32().encode(env),
            Kind::S64 => atoms::s64().encode(env),
            Kind::U64 => atoms::u64().encode(env),
            Kind::F32 => atoms::f32().encode(env),
            Kind::F64 => atoms::f64().encode(env),
            Kind::Bool => atoms::bool().encode(env),
            Kind::String => atoms::string().encode(env),
            Kind::Number => atoms::number().encode(env),
            Kind::List(kind) => (atoms::list(), kind.term(env)?).encode(env),
            Kind::Optional(kind) => (atoms::optional(), kind.term(env)?).encode(env),
            Kind::OneOf(names) => {
                let names = names.iter().map(|name| Atom::from_str(env, name));
                (atoms::one_of(), names.collect::<NifResult<Vec<_>>>()?).encode(env)
            }
        })
    }
}

/// The table as a list of maps.
pub fn table(env: Env) -> NifResult<Vec<Term>> {
    let entries = entries().map_err(|error| rustler::Error::Term(Box::new(error.to_string())))?;
    let row = |entry: &Entry| {
        let attributes = entry.attributes.iter().map(|(name, kind)| {
            let name = Atom::from_str(env, name)?;
            Ok((name, kind.term(env)?))
        });
        let traits = entry.example.traits();
        let row = Row {
            name: Atom::from_str(env, entry.example.name())?,
            attributes: attributes.collect::<NifResult<_>>()?,
            class: traits.class,
            required: traits.arity.required,
            optional: traits.arity.optional,
            more: traits.arity.more,
            outputs: traits.outputs,
            view: traits.view,
            elementwise: traits.is_elementwise(),
            converts: traits.converts,
            simple: traits.simple,
            cpu_only: traits.cpu_only,
            late_failure: traits.late_failure,
        };
        Ok(row.encode(env))
    };
    entries.iter().map(row).collect()
}

fn unknown<T>(what: &str) -> Result<T, Error> {
    Err(Error::custom(format!("op/attributes.rs knows no {what}")))
}

/// Makes the operation of a name, and notes what it asks for.
struct Operation<'a> {
    name: &'static str,
    attributes: &'a mut Vec<(&'static str, Kind)>,
}

impl<'de> Deserializer<'de> for Operation<'_> {
    type Error = Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        unknown("operation that is no variant")
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> EnumAccess<'de> for Operation<'_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: StrDeserializer<Error> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Operation<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Fields {
            names: fields.iter(),
            attributes: self.attributes,
        })
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, _seed: S) -> Result<S::Value, Error> {
        unknown("variant without names")
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Error> {
        unknown("variant without names")
    }
}

struct Fields<'a> {
    names: std::slice::Iter<'static, &'static str>,
    attributes: &'a mut Vec<(&'static str, Kind)>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some(name) = self.names.next() else {
            return Ok(None);
        };
        self.attributes.push((name, Kind::Number));
        let name: StrDeserializer<Error> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        match self.attributes.last_mut() {
            Some((_, kind)) => seed.deserialize(Value(kind)),
            None => unknown("value without a name"),
        }
    }
}

/// Makes a value of any type, and notes which it is.
struct Value<'a>(&'a mut Kind);

macro_rules! scalars {
    ($($method:ident => $kind:ident, $visit:ident($value:expr);)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            *self.0 = Kind::$kind;
            visitor.$visit($value)
        })*
    };
}

impl<'de> Deserializer<'de> for Value<'_> {
    type Error = Error;

    scalars! {
        // An untagged enum, of which there is one.
        deserialize_any => Number, visit_i64(1);
        deserialize_bool => Bool, visit_bool(false);
        deserialize_i32 => S32, visit_i32(1);
        deserialize_i64 => S64, visit_i64(1);
        deserialize_u64 => U64, visit_u64(1);
        deserialize_f32 => F32, visit_f32(1.0);
        deserialize_f64 => F64, visit_f64(1.0);
        deserialize_string => String, visit_str("");
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut kind = Kind::Number;
        let value = visitor.visit_some(Value(&mut kind))?;
        *self.0 = Kind::Optional(Box::new(kind));
        Ok(value)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut kind = Kind::Number;
        let value = visitor.visit_seq(Single(Some(Value(&mut kind))))?;
        *self.0 = Kind::List(Box::new(kind));
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = Kind::OneOf(variants);
        match variants.first() {
            Some(first) => visitor.visit_enum(StrDeserializer::<Error>::new(first)),
            None => unknown("enum without variants"),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i128 u8 u16 u32 u128 char str bytes byte_buf unit unit_struct newtype_struct tuple tuple_struct map
        struct identifier ignored_any
    }
}

/// A list of one value.
struct Single<'a>(Option<Value<'a>>);

impl<'de> SeqAccess<'de> for Single<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.0
            .take()
            .map(|value| seed.deserialize(value))
            .transpose()
    }
}
