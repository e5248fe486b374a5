"""Other runtimes that run the same model beside netwright: ``netwright bench --peers``."""
