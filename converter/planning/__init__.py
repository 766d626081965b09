"""Making the plan of a conversion: what every target leaf is made of, and what is lost or invented."""
